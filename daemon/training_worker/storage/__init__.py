"""What lies on the disk, and the room that is left there."""
