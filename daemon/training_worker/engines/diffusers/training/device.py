"""What is set for the whole process before it computes on a CUDA GPU."""

import torch

from training_schemas.spec import RunSpec
from training_worker.engines.diffusers.models.attention import choose_attention

CUDA = "cuda"


def set_up_device(spec: RunSpec) -> None:
    """Choose how a GPU computes what torch leaves open: products of float32, and attention.

    What is float32 by its nature, such as embeddings of time, needs no more than the 10 bits of TF32; so does a base in
    float32, whose gradients bfloat16 would have given 7 bits of.
    """
    if spec.device == CUDA:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        choose_attention(spec.execution.attention_kernels)
