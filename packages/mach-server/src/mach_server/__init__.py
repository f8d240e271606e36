"""mach's HTTP server: the serve step of the pipeline, OpenAI's API over one engine.

Import from the defining modules: `mach_server.app`, `mach_server.inference_service`,
`mach_server.http_server`.
"""
