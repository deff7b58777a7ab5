"""What evaluated runs show: tables, figures and statistics; one page and Markdown from everything under ``exp/``."""
