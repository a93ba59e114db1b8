"""carbon_points: an event-sourced backend for personal carbon inclusion (碳普惠)."""

__version__ = "0.1.0"
