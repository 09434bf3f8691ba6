// The address is relative, so that it holds under the stage's path of API Gateway too.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });
