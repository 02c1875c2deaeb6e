"""peft's methods, one file per family."""
