"""Servers under load: supervised, reloaded, scaled and killed, while strict clients ask."""
