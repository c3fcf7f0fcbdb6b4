/* The gradients of any loss: hpa_gradcheck_loss, and the options of both checks. */
#include <hpa/gradcheck.h>

#include "probe.h"

#include <inttypes.h>

hpa_gradcheck_options hpa_gradcheck_options_default(void)
{
    return (hpa_gradcheck_options){
        .eps = 1e-6, .order = 2, .atol = 1e-5, .rtol = 1e-3, .samples = 4096, .directions = 4};
}

hpa_gradcheck_options hpa_gradcheck_attention_options(void)
{
    return (hpa_gradcheck_options){
        .eps = 0x1p-10, .order = 4, .atol = 1e-10, .rtol = 1e-6, .samples = 2048, .directions = 1};
}

static hpa_status check_input(const struct probe *probe, const char *name,
                              const hpa_gradcheck_options *options, struct random *random,
                              hpa_gradcheck_result *result)
{
    struct shape shape = {.ndim = probe->value->ndim};
    for (int32_t n = 0; n < shape.ndim; n++)
        shape.length[n] = probe->value->shape[n];
    result_start(result, name, HPA_GRADCHECK_GRADIENT, &shape);

    struct pairs pairs;
    hpa_status status = pairs_create(&pairs, result->elements, options, false, random);
    if (status != HPA_OK)
        return status;
    probe_elements(probe, &pairs);
    status = probe_directions(probe, &pairs, random);
    if (status == HPA_OK) {
        struct comparison comparison = pairs_comparison(&pairs, options->atol, options->rtol);
        result_compare(result, &shape, &comparison);
    }
    pairs_destroy(&pairs);
    return status;
}

static hpa_status check_tensor(const hpa_gradcheck_input *input, const char *field,
                               const hpa_tensor *tensor, hpa_gradcheck_report *report)
{
    if (tensor->dtype != HPA_F64)
        return report_error(report, HPA_INVALID_DTYPE, "%s of input %s has dtype %d; expected f64",
                            field, input->name, (int)tensor->dtype);
    if (tensor->ndim < 1 || tensor->ndim > 4)
        return report_error(report, HPA_INVALID_SHAPE,
                            "%s of input %s has ndim %" PRId32 "; expected 1 to 4", field,
                            input->name, tensor->ndim);
    bool empty = false;
    for (int32_t n = 0; n < tensor->ndim; n++) {
        if (tensor->shape[n] < 0)
            return report_error(report, HPA_INVALID_SHAPE,
                                "%s of input %s has shape[%" PRId32 "] %" PRId64
                                "; expected 0 or more",
                                field, input->name, n, tensor->shape[n]);
        empty = empty || tensor->shape[n] == 0;
    }
    if (!tensor->data && !empty)
        return report_error(report, HPA_INVALID_ARGUMENT, "%s of input %s has no data", field,
                            input->name);
    return HPA_OK;
}

static hpa_status check_same_shape(const hpa_gradcheck_input *input, hpa_gradcheck_report *report)
{
    const hpa_tensor *value = &input->value, *gradient = &input->gradient;
    if (value->ndim != gradient->ndim)
        return report_error(report, HPA_INVALID_SHAPE,
                            "input %s has ndim %" PRId32 " and its gradient %" PRId32
                            "; expected the same",
                            input->name, value->ndim, gradient->ndim);
    for (int32_t n = 0; n < value->ndim; n++) {
        if (value->shape[n] != gradient->shape[n])
            return report_error(report, HPA_INVALID_SHAPE,
                                "input %s has shape[%" PRId32 "] %" PRId64
                                " and its gradient %" PRId64 "; expected the same",
                                input->name, n, value->shape[n], gradient->shape[n]);
        if (value->shape[n] > 1 && value->stride[n] == 0)
            return report_error(report, HPA_INVALID_STRIDE,
                                "input %s has stride[%" PRId32 "] 0 over %" PRId64
                                " elements; expected a place for each",
                                input->name, n, value->shape[n]);
    }
    return HPA_OK;
}

static hpa_status check_arguments(hpa_gradcheck_loss_function loss,
                                  const hpa_gradcheck_input *inputs, int32_t n_inputs,
                                  const hpa_gradcheck_options *options,
                                  hpa_gradcheck_report *report)
{
    if (!loss)
        return report_error(report, HPA_INVALID_ARGUMENT, "loss is NULL; expected a function");
    if (n_inputs < 1 || n_inputs > HPA_GRADCHECK_MAX_RESULTS)
        return report_error(report, HPA_INVALID_ARGUMENT,
                            "n_inputs is %" PRId32 "; expected 1 to %d", n_inputs,
                            HPA_GRADCHECK_MAX_RESULTS);
    if (!inputs)
        return report_error(report, HPA_INVALID_ARGUMENT, "inputs is NULL; expected an array");
    hpa_status status = check_options(options, report);
    for (int32_t n = 0; n < n_inputs && status == HPA_OK; n++) {
        if (!inputs[n].name)
            return report_error(report, HPA_INVALID_ARGUMENT, "inputs[%" PRId32 "].name is NULL",
                                n);
        status = check_tensor(&inputs[n], "value", &inputs[n].value, report);
        if (status == HPA_OK)
            status = check_tensor(&inputs[n], "gradient", &inputs[n].gradient, report);
        if (status == HPA_OK)
            status = check_same_shape(&inputs[n], report);
    }
    return status;
}

hpa_status hpa_gradcheck_loss(hpa_gradcheck_loss_function loss, void *context,
                              const hpa_gradcheck_input *inputs, int32_t n_inputs,
                              const hpa_gradcheck_options *options, hpa_gradcheck_report *report)
{
    hpa_gradcheck_options chosen = options ? *options : hpa_gradcheck_options_default();
    if (!report)
        return HPA_INVALID_ARGUMENT;
    *report = (hpa_gradcheck_report){0};
    hpa_status status = check_arguments(loss, inputs, n_inputs, &chosen, report);
    if (status != HPA_OK)
        return status;

    struct random random = {chosen.seed};
    for (int32_t n = 0; n < n_inputs; n++) {
        struct probe probe = {.loss = loss,
                              .context = context,
                              .value = &inputs[n].value,
                              .gradient = &inputs[n].gradient,
                              .eps = chosen.eps,
                              .order = chosen.order};
        status = check_input(&probe, inputs[n].name, &chosen, &random, report_next(report));
        if (status != HPA_OK)
            return report_error(report, status, "no memory to check input %s", inputs[n].name);
    }
    report_finish(report);
    return HPA_OK;
}
