"""EmojiMatrix: the small world with right answers that this pack is trained, tested and demonstrated on."""
