"""What the library panel shows: rows, searches, a map. Everything is read from an index; ComfyUI is not known here."""
