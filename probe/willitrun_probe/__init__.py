"""Facts about this machine: what is there, what is free, who says so, what failed. No opinions."""
