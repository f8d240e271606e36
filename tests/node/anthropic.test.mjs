// The official Anthropic client for JavaScript against the server at MACH_URL.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.env.MACH_URL, apiKey: "any", maxRetries: 0 });
const fields = {
  model: "mach-pico",
  max_tokens: 200,
  top_k: 1,
  thinking: { type: "disabled" },
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
};
const tools = [
  {
    name: "get_weather",
    input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];

test("a streamed message adds up to the plain one", async () => {
  const short = { ...fields, max_tokens: 12 };
  const whole = await client.messages.create(short);
  const stream = client.messages.stream(short);
  const bills = [];
  stream.on("streamEvent", (event) => event.type === "message_delta" && bills.push(event.usage.expert_io));
  const streamed = await stream.finalMessage();
  assert.equal(whole.usage.expert_io.misses, 0);
  assert.deepEqual(bills.map((bill) => bill.misses), [0]);
  assert.deepEqual(streamed.content, whole.content);
  assert.equal(streamed.stop_reason, whole.stop_reason);
  assert.equal(streamed.usage.output_tokens, whole.usage.output_tokens);
});

test("a tool is called when it must be", async () => {
  const forced = { ...fields, tools, tool_choice: { type: "tool", name: "get_weather" } };
  const answer = await client.messages.stream(forced).finalMessage();
  assert.equal(answer.stop_reason, "tool_use");
  const call = answer.content.find((block) => block.type === "tool_use");
  assert.equal(typeof call.input.city, "string");
});

test("tokens are counted", async () => {
  const { max_tokens, top_k, ...counted } = fields;
  const { input_tokens } = await client.messages.countTokens(counted);
  const answer = await client.messages.create({ ...fields, max_tokens: 1 });
  assert.equal(answer.usage.input_tokens, input_tokens);
});

test("errors have the client's own classes", async () => {
  await assert.rejects(client.messages.create({ ...fields, model: "other" }), Anthropic.NotFoundError);
  await assert.rejects(client.messages.create({ ...fields, max_tokens: 0 }), Anthropic.BadRequestError);
});
