"""A fusion as one LoRA file: what of it can be written down exactly, in which tensors, under which name."""
