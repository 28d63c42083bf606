"""What a step and a checkpoint take of a device, before anything is loaded."""
