"""What applying LoRAs costs: no LoRA, merged, plain branches, the gate as it is written down, and ours."""
