package services

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// gateway makes the calls of a generated client over HTTP and JSON, which the server's
// gateway turns into gRPC again. It has the endpoint's URL.
type gateway string

// request posts one message to where the gateway has the method.
func (g gateway) request(ctx context.Context, method string, in any) (*http.Response, error) {
	body, err := protojson.Marshal(in.(proto.Message))
	if err != nil {
		return nil, err
	}
	// "/v3lockpb.Lock/Unlock" is "/v3/lock/unlock".
	_, name, _ := strings.Cut(strings.ToLower(method), ".")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, string(g)+"/v3/"+name, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, refusal(resp.Body)
	}
	return resp, nil
}

// refusal returns the error of which the gateway tells.
func refusal(body io.Reader) error {
	var told struct {
		Code    codes.Code
		Message string
	}
	if err := json.NewDecoder(body).Decode(&told); err != nil {
		return err
	}
	return status.Error(told.Code, told.Message)
}

// Invoke implements [grpc.ClientConnInterface].
func (g gateway) Invoke(ctx context.Context, method string, in, out any, _ ...grpc.CallOption) error {
	resp, err := g.request(ctx, method, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return protojson.Unmarshal(data, out.(proto.Message))
}

// NewStream implements [grpc.ClientConnInterface] for streams with one request.
func (g gateway) NewStream(
	ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return &stream{ctx: ctx, gateway: g, method: method}, nil
}

// stream is a call that is answered more than once. The request is sent before the first
// answer is asked for: one goroutine uses it.
type stream struct {
	gateway gateway
	ctx     context.Context
	method  string
	in      any
	answers *json.Decoder // nil until the first is asked for
}

func (s *stream) Header() (metadata.MD, error) { return nil, nil }
func (s *stream) Trailer() metadata.MD         { return nil }
func (s *stream) CloseSend() error             { return nil }
func (s *stream) Context() context.Context     { return s.ctx }

func (s *stream) SendMsg(in any) error {
	s.in = in
	return nil
}

func (s *stream) RecvMsg(out any) error {
	if s.answers == nil {
		resp, err := s.gateway.request(s.ctx, s.method, s.in)
		if err != nil {
			return err
		}
		context.AfterFunc(s.ctx, func() { resp.Body.Close() })
		s.answers = json.NewDecoder(resp.Body)
	}
	var answer struct {
		Result json.RawMessage
		Error  json.RawMessage
	}
	if err := s.answers.Decode(&answer); err != nil {
		return errors.Join(err, s.ctx.Err())
	}
	if answer.Result == nil {
		return fmt.Errorf("the stream ended: %s", answer.Error)
	}
	return protojson.Unmarshal(answer.Result, out.(proto.Message))
}
