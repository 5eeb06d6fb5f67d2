"""What can go wrong, tried many times over: kills and bad disks, hostile files, a server that runs for long."""
