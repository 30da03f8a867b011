"""The processor: Unicorn, and what turns its runs into a guest that goes on."""
