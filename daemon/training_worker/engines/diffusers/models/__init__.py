"""Loading a pipeline's parts, quantized where asked for, with adapters on them."""
