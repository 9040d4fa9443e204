package personality

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestMuxTakesEveryRow(t *testing.T) {
	mux := http.NewServeMux()
	for _, rt := range routes() {
		mux.Handle(rt.method+" "+rt.path, http.NotFoundHandler())
	}
	_ = httptest.NewRecorder()
}
