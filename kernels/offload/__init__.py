"""ZeRO offload's parts: where weights wait, how they come to the device, and what fits."""
