"""From tables to what people read: summaries, claims, figures, pages, the paper. Without torch, data or run folders."""
