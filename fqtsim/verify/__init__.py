"""Published training runs: replay one on this machine, and learn that it is equal or where it is not."""
