"""What serving loads: frozen weights and what is known of them; nothing in it is unpickled."""
