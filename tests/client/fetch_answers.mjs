// The `fetch` of `useChat` for earlier versions of the AI SDK, which is run with one and in a browser.

// snippet: reconnect
/** Fetches, and names a lost connection so that the SDK gives its half of the message up when the answer is resumed. */
const fetchAnswers = async (input, init) => {
  const response = await fetch(input, init);
  // A browser gives a 204 an empty body, and refuses to make a 204 of one.
  if (response.status === 204 || !response.body) return response;
  const reader = response.body.getReader();
  const body = new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await reader.read();
        if (done) controller.close();
        else controller.enqueue(value);
      } catch (cause) {
        controller.error(new Error('The connection was lost.', { cause }));
      }
    },
    cancel: (reason) => reader.cancel(reason),
  });
  return new Response(body, response);
};
// end

export { fetchAnswers };
