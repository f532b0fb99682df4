"""Each kernel for the CPU, compared with torch."""
