"""What a machine has and how fast it is: probed, measured, looked up, or simulated."""
