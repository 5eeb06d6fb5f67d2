"""From a prompt to the LoRAs that fit it, or to a reason why none does."""
