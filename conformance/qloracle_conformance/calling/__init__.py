"""From the text IMPL to answered calls: loading, one call, the child process, and its two ends."""
