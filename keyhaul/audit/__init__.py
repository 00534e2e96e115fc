"""What this node did, in lines that cannot be changed unseen: who asked, who got which key id. Never bits."""
