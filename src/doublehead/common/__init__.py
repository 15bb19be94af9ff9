"""What everything else stands on: errors, files, devices, processes, the console."""
