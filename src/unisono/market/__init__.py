"""What serving costs, what it is sold for, and what buyers compare it with."""
