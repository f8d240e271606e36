"""A chat, a stream and a tool call with the official OpenAI client for Python.

pip install openai
python examples/openai_python.py http://127.0.0.1:8080
"""

import json
import os
import sys

from openai import OpenAI

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def main(base: str) -> None:
    """Args: base: the server, e.g. `http://127.0.0.1:8080`."""
    with OpenAI(base_url=f"{base}/v1", api_key=os.environ.get("MACH_API_KEY", "any")) as client:
        model = client.models.list().data[0].id
        print(f"model: {model}")

        question = [{"role": "user", "content": "def reverse(s):"}]
        answer = client.chat.completions.create(
            model=model, messages=question, max_tokens=64, temperature=0, reasoning_effort="none"
        )
        print(f"chat: {answer.choices[0].message.content!r}")

        print("stream: ", end="")
        stream = client.chat.completions.create(
            model=model, messages=question, max_tokens=64, temperature=0, stream=True, reasoning_effort="none"
        )
        for chunk in stream:
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
        print()

        called = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=TOOLS,
            tool_choice="required",
            temperature=0,
            max_tokens=200,
        )
        for call in called.choices[0].message.tool_calls or ():
            print(f"tool: {call.function.name} {json.loads(call.function.arguments)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080")
