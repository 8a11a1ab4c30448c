"""What encoders made, kept on disk for the runs that come after."""
