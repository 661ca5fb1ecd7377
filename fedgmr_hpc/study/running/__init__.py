"""Running cells on this machine: their queue, and the GPUs that it deals them."""
