"""Whether lens, lamp and camera are as they were calibrated."""
