"""What a run's programs need in memory and time, estimated or compiled without the machine that would run them."""
