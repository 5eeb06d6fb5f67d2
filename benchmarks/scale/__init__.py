"""How the pack does with a collector's library: encoding, scanning, answering, starting, more than one machine."""
