"""What every training phase needs around its loop: one writer, resuming, the log, and an end when training diverges."""
