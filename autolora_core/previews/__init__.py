"""Pictures of what LoRAs do, and what those pictures say of them."""
