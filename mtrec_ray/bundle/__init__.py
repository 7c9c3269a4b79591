"""What serving loads: frozen weights and their metrics; nothing is unpickled."""
