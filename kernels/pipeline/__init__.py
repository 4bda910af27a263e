"""Pipeline's parts: who computes when, how layers are split, how stages talk."""
