"""What the scripts share. Everything here needs only the Python standard library, except ``sheet`` (Pillow)."""
