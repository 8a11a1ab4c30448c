"""Parts of the project that other people's tests start, too."""
