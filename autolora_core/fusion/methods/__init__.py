"""Training-free ways to fuse LoRAs, each from its paper; ``planner.blend`` is the door."""
