//! A function that does nothing but read one secret in its init, which nearly all do, with the client that they use.

use lambda_http::{Body, Error, Request, Response, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    lib::secrets::ping("SIGNING_SECRET_ARN").await?;
    lambda_http::run(service_fn(|_: Request| async { Ok::<_, Error>(Response::new(Body::from("{}"))) })).await
}
