//! Frames over one WebSocket, from either end.
//!
//! Reading and writing go on together inside [`Socket::next`]: an end that waited for its writes
//! before it read again would deadlock with a peer that does the same. Buffers start small and the
//! eager 128 KiB of the library are avoided, because a server holds very many idle sockets.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::handshake::client::Response as ClientResponse;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::{Link, LinkError, Traffic, bytes};
use crate::proto::frame::{Frame, FrameError, SUBPROTOCOL};
use crate::tls;

/// Bytes of the read buffer that each socket holds from the start; it grows for a larger frame.
const READ_BUFFER: usize = 512;
/// Bytes that may wait to be written: a full window of the largest frames.
pub(super) const WRITE_BUFFER_MAX: usize = 4 * 1024 * 1024;

impl From<WsError> for LinkError {
    fn from(error: WsError) -> Self {
        match error {
            WsError::ConnectionClosed | WsError::AlreadyClosed => Self::Closed,
            WsError::Http(response) => Self::NotAGateway(format!("HTTP status {}", response.status())),
            WsError::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
                Self::Frame(FrameError::TooLong { length: size, limit: max_size })
            }
            // What TLS has to say may come with the first answer.
            WsError::Io(error) => Self::Broken(tls::explain(&error)),
            broken @ (WsError::Tls(_)
            | WsError::Capacity(CapacityError::TooManyHeaders)
            | WsError::Protocol(_)
            | WsError::WriteBufferFull(_)
            | WsError::Utf8(_)
            | WsError::AttackAttempt
            | WsError::Url(_)
            | WsError::HttpFormat(_)) => Self::Broken(broken.to_string()),
        }
    }
}

/// An open WebSocket that carries frames.
#[derive(Debug)]
pub struct Socket<S> {
    stream: WebSocketStream<S>,
    unflushed: bool,
    traffic: Traffic,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// The server's side of the handshake; frames up to `frame_max` bytes are read.
    pub async fn accept(stream: S, frame_max: usize) -> Result<Self, LinkError> {
        let stream =
            tokio_tungstenite::accept_hdr_async_with_config(stream, check_request, Some(config(frame_max))).await?;
        Ok(Self { stream, unflushed: false, traffic: Traffic::default() })
    }

    /// The device's side of the handshake with the gateway at `url`.
    pub async fn connect(stream: S, url: &str, frame_max: usize) -> Result<Self, LinkError> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut request = url.into_client_request()?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        let (stream, response) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config(frame_max))).await?;
        check_response(&response)?;
        Ok(Self { stream, unflushed: false, traffic: Traffic::default() })
    }

    /// Sends what is queued. Safe to cancel.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Message, LinkError>> {
        // A flush that has to wait does not keep us from reading: it has left its waker.
        if let Poll::Ready(result) = self.poll_flush(context) {
            result?;
        }
        match ready!(Pin::new(&mut self.stream).poll_next(context)) {
            Some(Ok(message)) => Poll::Ready(Ok(message)),
            Some(Err(error)) => Poll::Ready(Err(error.into())),
            None => Poll::Ready(Err(LinkError::Closed)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Link for Socket<S> {
    fn queue(&mut self, frame: &impl Frame) -> Result<(), LinkError> {
        self.unflushed = true;
        let text = frame.encode();
        self.traffic.sent += bytes(text.len());
        Ok(Pin::new(&mut self.stream).start_send(Message::text(text))?)
    }

    async fn next<F: Frame>(&mut self) -> Result<F, LinkError> {
        loop {
            match poll_fn(|context| self.poll_next(context)).await? {
                Message::Text(text) => {
                    self.traffic.received += bytes(text.len());
                    return Ok(F::decode(&text)?);
                }
                Message::Binary(_) => return Err(LinkError::NotAGateway("a binary frame".into())),
                Message::Close(_) => return Err(LinkError::Closed),
                // The library answers pings itself; sending the pong needs a flush.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => self.unflushed = true,
            }
        }
    }

    async fn close(mut self) -> Result<(), LinkError> {
        self.flush().await?;
        Ok(poll_fn(|context| Pin::new(&mut self.stream).poll_close(context)).await?)
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }
}

fn config(frame_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_MAX)
        .max_message_size(Some(frame_max))
        .max_frame_size(Some(frame_max))
}

/// A device names our subprotocol; a stock client that names none is welcome as well.
// The shape of the result is the library's.
#[allow(clippy::result_large_err)]
fn check_request(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let Some(offered) = request.headers().get(SEC_WEBSOCKET_PROTOCOL) else { return Ok(response) };
    let ours = |offer: &str| offer.split(',').any(|name| name.trim() == SUBPROTOCOL);
    if !offered.to_str().is_ok_and(ours) {
        let mut refusal = ErrorResponse::new(Some(format!("this gateway speaks the subprotocol {SUBPROTOCOL}\n")));
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        return Err(refusal);
    }
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(response)
}

fn check_response(response: &ClientResponse) -> Result<(), LinkError> {
    let spoken = response.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|name| name.to_str().ok());
    if spoken != Some(SUBPROTOCOL) {
        return Err(LinkError::NotAGateway(format!("it does not speak the subprotocol {SUBPROTOCOL}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::frame::{TO_DEVICE_MAX, TO_SERVER_MAX, ToDevice, ToServer};

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_the_peer_s_mistake_and_may_be_answered() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (server, device) =
            tokio::join!(Socket::accept(near, TO_SERVER_MAX), Socket::connect(far, "ws://localhost", TO_DEVICE_MAX));
        let (mut server, mut device) = (server.unwrap(), device.unwrap());
        device.queue(&ToDevice::Redirect { gateway: "x".repeat(TO_SERVER_MAX) }).unwrap();
        device.flush().await.unwrap();
        let error = server.next::<ToServer>().await.unwrap_err();
        assert!(matches!(error, LinkError::Frame(FrameError::TooLong { limit: TO_SERVER_MAX, .. })), "{error}");
        server.queue(&ToDevice::Pong { seq: 1 }).unwrap();
        server.flush().await.unwrap();
        assert_eq!(device.next::<ToDevice>().await.unwrap(), ToDevice::Pong { seq: 1 });
    }
}
