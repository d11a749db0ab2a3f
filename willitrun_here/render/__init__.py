"""Show an answer: terminal, Markdown, one HTML file, a card, a site. Renderers format values and never compute them."""
