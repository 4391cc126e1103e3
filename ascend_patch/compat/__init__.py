"""What is known about upstream's versions. No other package compares them."""
