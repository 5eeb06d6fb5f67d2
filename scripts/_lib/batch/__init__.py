"""Many prompts over one or many servers: `rows` reads them, `workflow` fills a graph, `worker` keeps one server busy,
`board` knows what is done and by whom, `books` keeps it on disk. Standard library alone."""
