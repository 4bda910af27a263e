"""Model parallel: whole layers on devices, one after the other (litgpt's *sequential*).

What Meta and fairscale call `model_parallel_size` is our tensor degree. The hidden states
travel from stage to stage over the engine's group of stages.
"""

from kernels.llama import Llama
from kernels.placement import Placement


def model_parallel(model: Llama, placement: Placement) -> None:
    """Remove from the model what the rank's stage does not own."""
    owned = {str(layer) for layer in placement.layers}
    for layer in list(model.layers):
        if layer not in owned:
            del model.layers[layer]
    if not placement.is_first:
        model.tok_embeddings = None
    if not placement.is_last:
        model.norm = model.output = None
