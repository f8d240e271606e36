// The official OpenAI client for JavaScript against the server at MACH_URL.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.MACH_URL}/v1`, apiKey: "any", maxRetries: 0 });
const model = "mach-pico";
const messages = [{ role: "user", content: "def reverse(s):" }];
const plain = { chat_template_kwargs: { enable_thinking: false } };
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];
const ask = [{ role: "user", content: "What is the weather in Paris?" }];

test("a streamed chat adds up to the plain one", async () => {
  const fields = { model, messages, max_tokens: 12, temperature: 0, ...plain };
  const whole = await client.chat.completions.create(fields);
  const stream = await client.chat.completions.create({
    ...fields,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  const { expert_io: bill, ...tokens } = whole.usage;
  const { expert_io: streamed, ...rest } = usage;
  assert.deepEqual(rest, tokens);
  for (const one of [bill, streamed]) {
    assert.ok(one.hits > 0 && one.compute_ms > 0);
    assert.equal(one.misses + one.bytes_read + one.wait_ms, 0);
  }
});

test("the stream helper puts a call together", async () => {
  const stream = client.chat.completions.stream({
    model,
    messages: ask,
    tools,
    tool_choice: { type: "function", function: { name: "get_weather" } },
    temperature: 0,
    ...plain,
  });
  const answer = await stream.finalChatCompletion();
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.equal(typeof JSON.parse(call.function.arguments).city, "string");
});

test("a schema is kept to", async () => {
  const schema = {
    type: "object",
    properties: { colour: { enum: ["red", "green"] } },
    required: ["colour"],
    additionalProperties: false,
  };
  const answer = await client.chat.completions.create({
    model,
    messages,
    response_format: { type: "json_schema", json_schema: { name: "colour", schema, strict: true } },
    temperature: 0,
    ...plain,
  });
  assert.ok(["red", "green"].includes(JSON.parse(answer.choices[0].message.content).colour));
});

test("completions go on from text", async () => {
  const answer = await client.completions.create({ model, prompt: "import numpy as", max_tokens: 4, temperature: 0 });
  assert.ok(answer.choices[0].text.startsWith(" np"));
});

test("responses are streamed in events", async () => {
  const fields = { model, input: "def reverse(s):", max_output_tokens: 12, temperature: 0, ...plain };
  const whole = await client.responses.create(fields);
  let text = "";
  let last;
  for await (const event of await client.responses.create({ ...fields, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  assert.equal(text, whole.output_text);
  assert.equal(last.type, "response.incomplete");
  assert.equal(last.response.usage.expert_io.misses, whole.usage.expert_io.misses);
  assert.equal(last.response.incomplete_details.reason, "max_output_tokens");
});

test("errors have the client's own classes", async () => {
  await assert.rejects(client.chat.completions.create({ model: "other", messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model, messages, n: 2 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "n");
    return true;
  });
});

test("leaving a stream leaves the server ready", async () => {
  for (let round = 0; round < 3; round += 1) {
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    for await (const chunk of stream) {
      assert.equal(chunk.object, "chat.completion.chunk");
      break;
    }
  }
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 1 });
  assert.equal(answer.usage.completion_tokens, 1);
});
