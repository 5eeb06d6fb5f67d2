"""Training a fusion gate on any base model: what is learnt and from what, without ComfyUI."""
